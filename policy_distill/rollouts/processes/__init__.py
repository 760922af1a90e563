"""Objects in separate processes, with one torch thread each."""

from policy_distill.rollouts.processes.remote import RESTARTS, Local, Recovery, Remote, available_cores, call_apart
from policy_distill.rollouts.processes.serving import DEBUG, Host

__all__ = ["DEBUG", "RESTARTS", "Host", "Local", "Recovery", "Remote", "available_cores", "call_apart"]
