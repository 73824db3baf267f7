"""Search. It knows no model: it is given a step function and a state, and gives plain hypotheses back."""
