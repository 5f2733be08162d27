"""What a walk says about the nodes that were verified, for the calibration of acceptance."""
