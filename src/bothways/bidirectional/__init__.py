"""Step 1: let every token see every token, and measure that it does."""
