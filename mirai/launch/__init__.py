"""Starting work: ranks and GPU slots of this machine, and training jobs that a queue runs."""
