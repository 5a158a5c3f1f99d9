//! Programs that people use.

use crate::support::Place;

#[test]
fn git_clones_commits_and_finds_no_fault() {
    let place = Place::new();
    place.shell(
        "export HOME=$OTHER GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
         git init -q $OTHER/origin; cd $OTHER/origin
         for i in $(seq 200); do mkdir -p d$((i % 17)); seq $i $((i * 20)) > d$((i % 17))/f$i; done
         git add .; git commit -qm one
         for i in $(seq 50); do seq $i > d1/g$i; done; git add .; git commit -qm two
         cd - > /dev/null
         git clone -q --no-local $OTHER/origin clone; cd clone
         git fsck --full --strict; git status --porcelain | wc -l | grep -qx 0
         echo more > d1/f18; rm -r d2; git add -A; git commit -qm three
         git gc -q --aggressive --prune=now; git fsck --full --strict
         git checkout -q HEAD~2; diff -r --exclude=.git . <(:) 2> /dev/null || true
         git checkout -q -; git worktree add -q ../tree HEAD~1; git -C ../tree status --porcelain | wc -l | grep -qx 0",
    );
}

#[test]
fn sqlite_keeps_its_integrity_under_writers() {
    let place = Place::new();
    for mode in ["delete", "wal"] {
        place.shell(&format!(
            "db={mode}.db
             sqlite3 $db 'PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);' > /dev/null
             writer() {{ for i in $(seq 40); do sqlite3 -cmd '.timeout 20000' $db \"INSERT INTO t(b) VALUES (randomblob(5000));\"; done; }}
             writer & writer & wait
             sqlite3 $db 'DELETE FROM t WHERE a % 3 = 0; VACUUM;'
             test $(sqlite3 $db 'PRAGMA integrity_check') = ok
             test $(sqlite3 $db 'SELECT count(*) FROM t') = 54"
        ));
    }
}

#[test]
fn cp_and_tar_keep_every_kind_of_entry() {
    let place = Place::new();
    place.shell(
        "mkdir -p $OTHER/src/a/b/c; cd $OTHER/src
         for i in $(seq 300); do head -c $((i * 331)) /dev/urandom > a/b/f$i; done
         ln a/b/f1 a/hard; ln -s b/f2 a/soft; ln -s /nowhere dangling; mkfifo fifo; mknod zero c 1 5
         truncate -s 3M a/sparse; chmod 4751 a/b/f3; chown 12:34 a/b/f4; touch -d '1999-12-31 23:59:58.123456789' a/b/f5
         setfattr -n user.test -v value a/b/f6; setfattr -n user.dir -v value a/b/c; touch -d 1960-01-01 a/b/c
         cd - > /dev/null; cp -a $OTHER/src copy
         list() { (cd $1; find . -printf '%P %y %m %U %G %n %s %T@ %l\\n' | sed 's/^\\(\\S*\\) d \\(\\S* \\S* \\S* \\S*\\) [0-9]* /\\1 d \\2 /' | sort; getfattr -R -d -h . 2>/dev/null | grep -v '^$' | paste -d' ' - - | sort); }
         diff <(list $OTHER/src) <(list copy)
         diff -r --no-dereference --exclude=fifo --exclude=zero $OTHER/src copy
         tar --xattrs -cf $OTHER/tar copy; mkdir out; tar --xattrs -xpf $OTHER/tar -C out
         diff <(list copy) <(list out/copy)
         rm -r copy out; test -z \"$(ls -A)\"",
    );
}

#[test]
fn builds_and_runs_a_small_program() {
    let place = Place::new();
    place.shell(
        "printf '#include <stdio.h>\\nint main(void) { puts(\"built here\"); return 0; }\\n' > main.c
         printf 'program: main.o\\n\\tcc -o $@ $^\\nmain.o: main.c\\n\\tcc -c -o $@ $<\\n' > Makefile
         make -s; test \"$(./program)\" = 'built here'
         make -q; sleep 0.01; touch main.c; ! make -q; make -s; ./program > /dev/null",
    );
}

#[test]
fn a_file_system_made_in_a_sparse_file_is_clean() {
    let place = Place::new();
    place.shell(
        "truncate -s 256M disk.img; mkdir $OTHER/files; cp -r /usr/share/doc/[a-d]* $OTHER/files 2>/dev/null || true
         mke2fs -q -t ext4 -d $OTHER/files disk.img; e2fsck -fn disk.img > /dev/null
         cp --sparse=always disk.img copy.img; cmp disk.img copy.img; e2fsck -fn copy.img > /dev/null",
    );
}
