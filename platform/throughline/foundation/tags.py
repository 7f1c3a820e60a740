"""The words that runs of the graph carry as tags, shared by those who launch them and those who read them."""

ARRIVAL = "throughline/arrival"  # which arrival of rows a run brings, and the attempt
AS_OF = "throughline/as_of"  # the instant up to which the run may know anything
CAUSE = "throughline/cause"  # why a retraining was requested
CLOCK = "throughline/data_clock"  # what the data clock showed then
LATE_ROWS = "throughline/late_rows"  # the source versions whose late rows a run builds, the same for all attempts
REQUEST = "throughline/request"  # one launch by a client, to find its run when the answer did not come
RETRAIN = "throughline/retrain"  # the use case that is retrained
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"  # inclusive
SUBMITTER = "throughline/submitter"  # the user who launched it by a command; the platform's own runs have none
WINDOW = "throughline/window"  # the judgement that asked for it, the same for all attempts
