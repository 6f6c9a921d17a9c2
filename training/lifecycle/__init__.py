"""What happens to a model later: retraining, promotion, drift, shadow, tracking."""
