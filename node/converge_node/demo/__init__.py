"""The demonstration: a mesh of processes on this machine that does real work and loses two of its nodes."""
