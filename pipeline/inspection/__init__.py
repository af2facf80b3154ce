"""Looking inside: what a dataset holds, what became of every clip, what the codes look like.

Its rooms:

    accounts        the table of all clips ever considered
    summary quantities by_source sql
                    what `stats` answers from
    tables terminal how it is shown
    members shard_tables
                    what is in one shard
    report page charts clip_sections shard_sections funnel gallery timings
                    the page
    sheet audit reconstruction originals
                    sources beside decoded codes
    diff outliers   two datasets compared; what stands apart
    cli pictures_cli
                    the commands
"""
