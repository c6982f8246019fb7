"""What runs inside a container: the agent, the child that it forks for each attempt, and what they speak.

Stdlib and cloudpickle only, Python 3.9 or later; nothing here may import what a container does not hold.
"""
