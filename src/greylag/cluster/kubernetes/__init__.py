"""Environments as pods of a Kubernetes cluster."""
