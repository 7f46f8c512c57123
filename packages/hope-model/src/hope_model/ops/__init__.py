"""Pure functions, state in and state out: each mechanism as `naive` (the equation) and `chunk` (the fast form)."""
