"""What tests/mutation/run.py breaks: all mutants, and which tests have to kill them."""
import attention_mutants
import infonce_mutants
import op_mutants

ALL = [*attention_mutants.ALL, *infonce_mutants.ALL, *op_mutants.ALL]


def tests_of(mutant):
    """The test programs that run the mutant's kernels, in the order in which they are tried."""
    if mutant.file == "kernels/cuda_common.cuh":
        return ["test_cuda_ops", "test_cuda_infonce"]
    if mutant.file == "kernels/decode_attention.cu":
        return ["test_cuda_ops"]
    if "attention" in mutant.file or mutant.file == "kernels/cuda_mma.cuh":
        return ["test_cuda_attention"]
    return ["test_cuda_infonce"] if "infonce" in mutant.file else ["test_cuda_ops"]
