#!/bin/sh
# Fills the corpora with the golden vectors of tests/fixtures, so that a run starts from whole records.
set -eu
cd "$(dirname "$0")"
records=../tests/fixtures/records.json
seal=../tests/fixtures/seal.json

# seed TARGET NAME: writes the bytes whose hexadecimal digits come in.
seed() {
    mkdir -p "corpus/$1"
    xxd -r -p > "corpus/$1/$2"
}

for name in commit commit_next commit_of_a_branch; do
    jq -r ".$name.bytes" "$records" | seed commit "$name"
done
for name in descriptor receipt; do
    jq -r ".$name.bytes" "$records" | seed "$name" golden
done
for name in genesis add revoke recover; do
    jq -r ".roster.$name.bytes" "$records" | seed roster_entry "$name"
done
for name in commit_private descriptor_private join_request join_answer log_entry; do
    jq -r ".$name" "$records" | seed "$name" golden
done
# Any first byte above 1 says that a whole line follows.
for name in invite founding_invite; do
    mkdir -p corpus/invite
    jq -rj "\"~\" + .$name" "$records" > "corpus/invite/$name"
done
count=$(jq '.objects | length' "$seal")
for number in $(seq 0 $((count - 1))); do
    jq -r ".objects[$number].bytes" "$seal" | seed object "$number"
    jq -r ".objects[$number].reference" "$seal" | seed reference "$number"
done

# The index has no vectors: entries of each kind, in hexadecimal digits as docs/formats.md lays them out.
le16() { printf '%02x%02x' $(($1 % 256)) $(($1 / 256)); }
repeat() { printf "%${2}s" '' | sed "s/ /$1/g"; }
reference() { repeat "$1" 64; printf '00010000'; }
inode=0000000000000007
attributes() { printf '01a401e8030000e803000001000000'; printf '0500000000000000'; repeat 01 24; printf '00000000'; }
entry() { le16 $((${#1} / 2)); le16 $((${#2} / 2)); printf '%s%s' "$1" "$2"; }
node() { printf '01%s' "$1"; le16 "$2"; cat; }

extent="0102$(reference 11)$(reference 22)0000$(reference 22)0100"
{
    printf '01%s01 %s\n' $inode "$(attributes)"
    printf '01%s02%s61 %s01\n' $inode 0123456789abcdef 0800000000000000
    printf '01%s03 2f746d70\n' $inode
    printf '01%s0461 0061\n' $inode
    printf '01%s0462 01%s\n' $inode "$(reference 33)"
} > corpus/metadata
{
    printf '02%s01 6869\n' $inode
    printf '02%s02%s %s\n' $inode 0000000000000000 "$extent"
    printf '02%s02%s 0100%s\n' $inode 0000000000010000 "$(reference 44)"
} > corpus/data
for zone in metadata data; do
    count=0
    while read -r key value; do
        count=$((count + 1))
        { le16 $((${#key} / 2)); printf '%s%s' "$key" "$value"; } | seed index_entry "$zone-$count"
        { printf '0101'; le16 $((${#key} / 2)); printf '0000%s' "$key"
          le16 $((${#value} / 2)); printf '0000%s' "$value"; } | seed overlay_change "$zone-$count"
    done < corpus/$zone
    while read -r key value; do entry "$key" "$value"; done < corpus/$zone | node 00 $count | seed node "$zone"
    while read -r key _; do entry "$key" "$(reference "4$count")"; done < corpus/$zone | node 01 $count | seed node "above-$zone"
    rm corpus/$zone
done
