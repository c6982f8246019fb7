"""The demo: an antibody's structure predicted from its sequence, each step in an environment of its own."""
