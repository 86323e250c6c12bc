"""Where environments run: local processes or Kubernetes, behind ``ports.Cluster``."""
