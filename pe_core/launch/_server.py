"""Loaded first by the server that forks workers: Ctrl-C, which reaches it as well, and the end of a notebook's kernel are no
business of its own. It goes when its parent does."""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
