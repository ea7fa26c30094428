"""Runs in processes of their own, on this machine or on a cluster, and what they would cost."""
