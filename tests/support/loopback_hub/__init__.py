"""A loopback Hub to push to and download from, in memory, which misbehaves on request.

It answers what the real huggingface_hub asks when it makes a repository, commits, tags and reads
back. ``{id}`` is ``namespace/name`` of a model. A dataset is ``datasets/namespace/name`` in
``create_repo``; of its routes those that read are served (information at a revision, tree,
paths-info, resolve). Other kinds of repository aren't.

===================================================  ==============================================
GET /api/whoami-v2                                   the token's name and organizations, or 401
POST /api/repos/create                               a repository whose first commit holds
                                                     ``.gitattributes``; 409 with ``url`` if there,
                                                     403 in a namespace of somebody else
POST /api/validate-yaml                              400 with ``errors`` for front matter that
                                                     isn't a YAML mapping, has a key twice or a
                                                     known key of the wrong kind
GET /api/models/{id}[/revision/{rev}]                ``id``, ``sha``, ``private``, ``siblings``
GET /api/models/{id}/refs                            branches, tags, pull requests
GET /api/models/{id}/tree/{rev}[/{path}]             files and folders; all of them in one page
POST /api/models/{id}/paths-info/{rev}               the same, of the paths that were asked for
GET /api/models/{id}/commits/{rev}                   newest first, in one page
POST /api/models/{id}/preupload/{rev}                ``lfs`` by suffix or size, and the oid there
POST /{id}.git/info/lfs/objects/batch                addresses on the second server, in one part
                                                     or several; no ``actions`` for what is there
PUT (storage) /{id}/lfs/{sha256}?ticket=[&part=]     an upload or its part
POST /api/complete_multipart?ticket=                 joins the parts
POST /{id}.git/info/lfs/objects/verify               404 until all of the object is there
POST /api/models/{id}/commit/{rev}[?create_pr=1]     412 unless ``parentCommit`` is the head
POST, DELETE /api/models/{id}/branch/{name}          409 if there
POST /api/models/{id}/tag/{rev}, DELETE .../{tag}    409 if there, wherever it points
HEAD, GET /{id}/resolve/{rev}/{path}                 the file, or a 302 to the second server (LFS)
HEAD, GET (storage) /{id}/blob/{sha256}              an LFS file, also by ranges
POST /oauth/token                                    a token for an id token that ``trust`` named
POST /api/jobs/{name}                                a job, which runs here after ``run_jobs``
GET /api/jobs/{name}/{number}[/logs]                 its stage; the lines that it has printed
GET /api/agent-harnesses                             404, unrecorded: the client asks on its own
===================================================  ==============================================

A revision is a branch, a tag, ``refs/pr/N`` or a commit, in full or its first seven digits or more.
Failures carry ``X-Error-Code`` and ``X-Error-Message`` as the Hub's do. The second server, called
storage, is reached as ``localhost`` instead of ``127.0.0.1``: for a client it is another host.

Not served: Xet (the client needs ``HF_HUB_DISABLE_XET=1``), discussions, pages of results,
``expand``, settings, moving and deleting repositories, git itself. What asks for them gets a 404
and is listed in ``unserved``.

Faults are rules (see ``rules``): which requests, how often, and what happens to them::

    with LoopbackHub({"hf_test": "user"}) as hub:
        hub.add_rule(Status(503, {"Retry-After": "1"}), path="/preupload/")
        hub.add_rule(Drop("done"), path="/commit/", times=FOREVER)
        hub.add_rule(Call(lambda: hub.move_head("user/name")), path="/commit/")
        subprocess.run([...], env=hub.env(tmp_path))
        assert hub.repo("user/name").commit_count() == 2
"""

from tests.support.loopback_hub.hub import LoopbackHub
from tests.support.loopback_hub.repository import Commit, File, Repository
from tests.support.loopback_hub.routes import Account
from tests.support.loopback_hub.rules import (
    FOREVER,
    Action,
    Call,
    Cut,
    Drop,
    Garbage,
    Hang,
    Request,
    Rule,
    Status,
    Trickle,
)

__all__ = [
    "FOREVER",
    "Account",
    "Action",
    "Call",
    "Commit",
    "Cut",
    "Drop",
    "File",
    "Garbage",
    "Hang",
    "LoopbackHub",
    "Repository",
    "Request",
    "Rule",
    "Status",
    "Trickle",
]
