"""Pictures of a run, drawn from its records when it is read: cost, scaling, label smoothing, rounds. No torch."""
