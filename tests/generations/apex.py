"""Stand-in for what NeMo 2.0.0rc0 takes from apex on this path: the count of micro batches, without ramp-up."""

import sys


class ConstantNumMicroBatches:
    def __init__(self, global_batch_size, micro_batch_size, data_parallel_size):
        self.current_global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.num_micro_batches, rest = divmod(global_batch_size, micro_batch_size * data_parallel_size)
        assert rest == 0

    def update(self, consumed_samples, consistency_check):
        pass  # only a ramp-up changes


def setup_microbatch_calculator(rank, rampup_batch_size, **sizes):
    global _GLOBAL_NUM_MICROBATCHES_CALCULATOR
    assert rampup_batch_size is None
    _GLOBAL_NUM_MICROBATCHES_CALCULATOR = ConstantNumMicroBatches(**sizes)


_reconfigure_microbatch_calculator = setup_microbatch_calculator
_GLOBAL_NUM_MICROBATCHES_CALCULATOR = None


def get_num_microbatches():
    return _GLOBAL_NUM_MICROBATCHES_CALCULATOR.num_micro_batches


def get_micro_batch_size():
    return _GLOBAL_NUM_MICROBATCHES_CALCULATOR.micro_batch_size


def get_current_global_batch_size():
    return _GLOBAL_NUM_MICROBATCHES_CALCULATOR.current_global_batch_size


def set_logging_level(level):
    pass


def set_virtual_pipeline_model_parallel_world_size(size):
    pass


# apex has them in these submodules
transformer = pipeline_parallel = utils = sys.modules[__name__]
for name in ("log_util", "microbatches", "parallel_state", "pipeline_parallel.utils"):
    sys.modules[f"apex.transformer.{name}"] = transformer
