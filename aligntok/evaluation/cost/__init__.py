"""What a config costs: parameters and multiply-accumulates, seconds and bytes of inference and of training steps."""
