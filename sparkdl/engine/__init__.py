"""What runs a network on this machine: OpenVINO, TensorFlow as reference, int8, distance to known images, activation maps."""
