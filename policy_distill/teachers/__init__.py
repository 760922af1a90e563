"""Reading a trained agent and acting with it."""

from policy_distill.teachers.files.archive import Archive, read_archive
from policy_distill.teachers.files.folder import AgentFiles, agents_dir, find_agent, shipped_agents
from policy_distill.teachers.files.normalization import ObservationNormalization, read_normalization, read_reward_scale
from policy_distill.teachers.recurrent import RecurrentTeacher
from policy_distill.teachers.teacher import Teacher

__all__ = [
    "AgentFiles",
    "Archive",
    "ObservationNormalization",
    "RecurrentTeacher",
    "Teacher",
    "agents_dir",
    "find_agent",
    "read_archive",
    "read_normalization",
    "read_reward_scale",
    "shipped_agents",
]
