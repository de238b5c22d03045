"""
Make a checkout of nanochat, and put a patch on any nanochat checkout or take it off again:

    python -m scripts.patch upstream [--remote URL|PATH] [--commit COMMIT] [--folder FOLDER]
    python -m scripts.patch check  --patch patches/nanochat_seed.patch --tree PATH
    python -m scripts.patch apply  --patch ... --tree PATH
    python -m scripts.patch revert --patch ... --tree PATH

The checkout's default folder is upstream/ under NANOCHAT_BASE_DIR. Exit code: 0 ok; 2 if nothing was changed, with a
message that says why. patches/README.md tells how a patch becomes an option or is given up. lab/trees/patches.py does
the work.
"""

import sys

from nanochat.command_line import Parser, say_error
from nanochat.common import get_base_dir
from nanochat.lab.trees import checkouts, patches
from nanochat.lab.trees.patch_files import read_patch


def build_parser():
    parser = Parser(prog="python -m scripts.patch",
                    description="Make a checkout of nanochat; check, apply or revert a patch on one.")
    commands = parser.add_subparsers(dest="command", required=True)
    upstream = commands.add_parser("upstream", help="clone or update a checkout; print its branch, commit and path")
    upstream.add_argument("--remote", help="URL or path to clone from "
                          f"(default: {checkouts.UPSTREAM} at {checkouts.UPSTREAM_COMMIT[:7]})")
    upstream.add_argument("--commit", help="commit, branch or tag to check out (default: the remote's HEAD)")
    upstream.add_argument("--folder", help="folder of the checkout (default: upstream/ under NANOCHAT_BASE_DIR)")
    for name, help in (("check", "say whether the patch applies; changes nothing"),
                       ("apply", "apply the patch, and note its hash and the base commit"),
                       ("revert", "take back the lines that apply changed, and nothing else")):
        command = commands.add_parser(name, help=help)
        command.add_argument("--patch", required=True, help="file with a git diff")
        command.add_argument("--tree", required=True, help="top folder of the git checkout to change")
    return parser


def say_base(patch, tree):
    commit = checkouts.head(tree)
    if patch.base and not commit.startswith(patch.base):
        print(f"  it was made for {patch.base}, and the tree is at {commit}: it applies, read what it changes")


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    try:
        if args.command == "upstream":
            found = checkouts.upstream(args.folder or get_base_dir() / "upstream", args.remote, args.commit)
            print(f"branch {found['branch']}\ncommit {found['commit']}\npath   {found['path']}")
        elif args.command == "check":
            patch = patches.check(args.tree, args.patch)
            print(f"{patch.name} applies to {args.tree} (sha256 {patch.sha256}); nothing was changed")
            say_base(patch, args.tree)
        elif args.command == "apply":
            note = patches.apply(args.tree, args.patch)
            print(f"{note['patch']} applied to {args.tree} at {note['base_commit']} (sha256 {note['sha256']})")
            say_base(read_patch(args.patch), args.tree)
        else:
            note = patches.revert(args.tree, args.patch)
            print(f"{note['patch']} taken back from {args.tree}; everything else is as it was")
    except (ValueError, OSError) as e:
        say_error(e)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
