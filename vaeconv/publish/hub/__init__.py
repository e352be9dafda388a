"""One commit on the Hub: what goes into it, who may make it, how it is made."""
