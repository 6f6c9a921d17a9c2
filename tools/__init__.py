"""What sets a checkout up, and what makes a file of it anew."""
