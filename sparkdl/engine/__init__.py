"""What runs a network here: OpenVINO, TensorFlow as reference, int8, activation maps, distance to known images."""
