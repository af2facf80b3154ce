"""Makes data: videos and images in, token shards out.

sources decode shots scores captions   from files to described clips
plan annotate caption select tokenize finalize   the phases of a build, each resumable
clip          what a clip is: source, span, crop, shape
commit        the one protocol by which work becomes part of a dataset
executor      where work runs: inline, or on Ray in processes that may die
shards        the format that the trainer reads
statistics summary inspection   looking inside: of a unit, a dataset, a shard
report charts tables inspection_cli   how it is shown: a page, a terminal, the commands
cluster submit submit_cli   how Ray is reached; the same work as jobs on a cluster
corpus demo   the main job, whole, on clips that it draws itself
"""
