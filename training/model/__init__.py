"""From vectors to a saved model: classifier, probabilities, threshold, abstention, novelty."""
