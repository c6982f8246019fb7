"""The version, where setup.cfg and both sides of the container wall can read it."""

VERSION = "0.1.0"
