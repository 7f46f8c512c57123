"""Functions that Triton compiles; nothing else imports it."""
