"""Where environments run: local processes, Kubernetes, or memory, behind ``ports.cluster``."""
