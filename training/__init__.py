"""Learns and samples: one transformer, one training loop, one sampling loop; methods are data.

Its rooms:

    order step_sizes method_config
                                in which step a cell is generated
    order_report order_picture orders_cli
                                that as text and as pictures
    layout fed_rows methods     what is fed for that, who predicts it
    attention positions rotary transformer block_config cache
                                the one mask rule, where cells stand, the one block, its cache
    packing                     clips of several shapes in one sequence
    compat convert_cli          published weights under our names, as runs
    models                      generators of the papers by name
    vocabulary condition        prompts as integers, and as the transformer sees them
    text_tower caption_features telling
                                captions as a frozen tower of open_clip reads them
    generator partial           the model, a clip in the making
    sampler loop_steps compiled guidance drawing given
                                the loop that makes it, its steps (compiled, too), what it does to
                                logits, what it is given
    samples resize sample_plan sample_folder sample_ranks frame_stream pictures
                                clips by number, as files, by several processes
    edit_config edit_source known_region editing edit_files edit_cli
                                a clip of which a part is made anew
    reconstructions generator_preview
                                what a tokenizer or generator in training makes
    data held_out draws tasks   batches and draws as functions of the step; what is learned
    ranks parallel signals owner
                                processes that train together, a model over them, a polite end,
                                one run in a folder at a time
    optimizer muon schedule average guard trainer
                                the loop and its parts
    checkpoint training_state tensor_parts weights warm_start
                                what a run goes on from, and what others begin with
    metrics sums loss_parts profiling
                                what there is to see of it
    flops                       the operations that a clip costs it, and those of a GPU
    bench bench_rounds bench_data plain_loop trace bench_config bench_cli
                                how fast it is: beside a plain loop, beside the machine's peak
    launch                      one process, torchrun, Ray
    run export config loop_config presets cli run_cli
                                run folders, settings, commands
    teacher_forcing             the loss of clips' codes, and how many bits they are
    evaluate comparison verdict judge likeness real_clips unseen_prompts kept_samples
    evaluate_config evaluate_cli
                                what samples are worth
    tokenizer_eval scoring features rate_distortion reconstruction_sheet tokenizer_eval_cli
                                what a tokenizer is worth
    pixel_clips tokenizer_latents tokenizer_latents_cli
                                clips to look at one with; the size of its latents
"""
