"""One controller a kind: what is declared, and what to do about what is not so yet."""
