"""ZeRO's buffer sizes, made from the model's width; the engine, the rehearsal and the plan all read them here."""

LIVE_PARAMETERS = 10**9
SUB_GROUP = 10**9


def zero_buckets(hidden_size: int) -> dict[str, int]:
    """DeepSpeed's ZeRO settings, in elements (not bytes), for a model of width `hidden_size`.

    Bucket and prefetch hold about one square matrix of the model, and everything below ten rows (norms, biases) is kept
    whole on every rank: `hidden²`, `0.9 hidden²` and `10 hidden`, which is what transformers' DeepSpeed integration
    puts for `auto` (`HfTrainerDeepSpeedConfig.trainer_config_finalize`). Live parameters, reuse distance and the
    optimizer's sub-groups are DeepSpeed's defaults, 1e9: one live gigaelement is five layers of 7B or one of 65B.
    Raises: ValueError: a width below 1.
    """
    if hidden_size < 1:
        raise ValueError(f"hidden_size {hidden_size}: should be at least 1")
    return {
        "reduce_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": hidden_size**2 * 9 // 10,
        "stage3_param_persistence_threshold": 10 * hidden_size,
        "sub_group_size": SUB_GROUP,
        "stage3_max_live_parameters": LIVE_PARAMETERS,
        "stage3_max_reuse_distance": LIVE_PARAMETERS,
    }
