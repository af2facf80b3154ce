"""Where videos and images come from: what a build is given becomes files, each at a location.

listing    what `sources` names: folders, globs, ranges, manifests, tars, URLs
file       what listing finds of a file
folders    folders and globs, on a disk and behind URLs
braces     shards/{0000..0099}.tar, written out
manifest   parquet, csv and jsonl tables of files, with what they say of them
rows       rows of such tables, a few at a time
endings    what a file is by the ending of its name
tars       the videos and images in WebDataset tars, with their sidecars
location   where a file lies, as one line of text; its size, its bytes
remote     files behind URLs: facts, bytes, folders
web        those of web servers, which are not trusted
patience   what a network does to a request is tried again
urls       what a URL says, and what opens it
looking    what was listed, identified; tars give way to what is in them
content    files by their sha256
media      a file as a decoder takes it
"""
