"""Makes data: videos and images in, token shards out.

Its rooms, in the order in which data passes them:

    sources decode shots scores captions coca
                    from files to described clips
    clip            what a clip is: source, span, crop, shape
    config          the settings of a build
    plan annotate caption select feed encode tokenize finalize build
                    the phases, each resumable, and what feeds them
    commit          the one protocol by which work becomes part of a dataset
    verify damage ledger agreement repair
                    whether everything is what was committed, and making it so again
    removal remains erasure sweep
                    taking sources out, what is left of them, deleting what nothing names
    merge union excerpt overlap neighbours
                    several datasets as one, and what they share
    migrate version1
                    datasets of older format versions
    executor        where work runs: inline, or on Ray in processes that may die
    shards          the format that the trainer reads
    statistics codebook_use distribution commit_sum accounts summary by_source timings funnel
                    what is in a dataset, in numbers that add up
    tables shard_tables findings terminal quantities inspection outliers diff sql
                    looking inside on a terminal
    report clip_sections shard_sections page charts gallery originals
    reconstruction sheet audit
                    looking inside with pictures
    cluster submit  reaching Ray; the same work as jobs on a cluster
    digits corpus demo
                    the main job, whole, on clips that it draws itself
    cli inspection_cli pictures_cli submit_cli upkeep_cli migrate_cli progress
                    the command
"""
