"""The commands: a module each, which is the call that its command line stands for."""
