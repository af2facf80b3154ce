"""Makes data: videos and images in, token shards out.

Its rooms, in the order in which data passes them:

    sources decode screen shots flow bars scores picture_hash analysis captions coca
                    from files to described clips
    clip            what a clip is: source, span, crop, shape
    config rules    the settings of a build
    inventory plan annotate caption select feed encode tokenize finalize build
                    the phases, each resumable, and what feeds them
    shard_draft     a shard in the making, and what its commit says
    storage commit  a disk or an object store, and the one protocol by which work gets there
    reuse removal   what need not be made again, what may not be used any more
    executor attempts isolation servant answers
                    where work runs: inline, or on Ray; files in processes that may die
    shards          the format that the trainer reads
    statistics distribution codebook_use commit_sum
                    what commits say of their samples, and how it adds up
    inspection      looking inside
    upkeep          verify, remove, gc, merge, overlap, migrate
    status forecast meter
                    how far a build is, what it will cost, what it has cost
    cluster submit  reaching Ray; the same work as jobs on a cluster
    digits corpus demo
                    the main job, whole, on clips that it draws itself
    cli status_cli submit_cli arguments progress quantities
                    the command
"""
