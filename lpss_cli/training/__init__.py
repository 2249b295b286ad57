"""Training: the trainer, the interface of methods, callbacks, evaluation and distillation."""
