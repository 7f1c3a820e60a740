"""The words that runs of the graph carry as tags, shared by those who launch them and those who read them."""

AS_OF = "throughline/as_of"  # the instant up to which the run may know anything
CAUSE = "throughline/cause"  # why a retraining was requested
CLOCK = "throughline/data_clock"  # what the data clock showed then
RETRAIN = "throughline/retrain"  # the use case that is retrained
WINDOW = "throughline/window"  # the judgement that asked for it, the same for all attempts
