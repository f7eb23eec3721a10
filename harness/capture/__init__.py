"""Real activations: what a trained model's head sees, written to files that suites measure on, and described."""
