"""Objects in separate processes, with one torch thread each."""

from typing import TypeAlias

from policy_distill.rollouts.processes.distant import Distant
from policy_distill.rollouts.processes.remote import RESTARTS, Local, Recovery, Remote, available_cores, call_apart
from policy_distill.rollouts.processes.serving import DEBUG, Host

Site: TypeAlias = Local | Remote | Distant
"""Where an object lives."""

__all__ = ["DEBUG", "RESTARTS", "Distant", "Host", "Local", "Recovery", "Remote", "Site", "available_cores", "call_apart"]
