"""What the page knows and does: outcomes as they come, health, findings, models; without HTTP."""
