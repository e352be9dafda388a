#!/bin/sh
# Install Debian's Chromium for the browser tests, where it is absent and that is possible.
set -u

skip() {
    echo "browser-setup: $1; the browser tests will be skipped"
    exit 0
}

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then
        echo "browser-setup: $(command -v "$name") is there"
        exit 0
    fi
done
command -v apt-get >/dev/null 2>&1 || skip "there is no apt-get to install chromium with"
[ "$(id -u)" -eq 0 ] || skip "only root can install chromium"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || skip "apt-get update failed"
apt-get install -qq -y --no-install-recommends chromium || skip "apt-get cannot install chromium"
