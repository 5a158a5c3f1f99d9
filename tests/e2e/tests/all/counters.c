/* Counts in many files, in one order, from several processes, until it is told to end (SIGTERM, exit code 7).
 *
 *   counters FILES PROCESSES WAYS
 *
 * Round after round its number is written into file 0, 1, … FILES - 1 of the working directory; file N is written by
 * process N % PROCESSES, which waits for its turn. WAYS[N % length] says how: w in place, a at the end of the file,
 * r by a new file that is renamed over the old one, m through a shared memory map. So at every moment the counts do
 * not rise from one file to the next, and the last is at most one behind the first. FILES is a multiple of PROCESSES.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FILES_MAX = 64, PROCESSES_MAX = 16, PAGE = 4096 };

struct counter {
    char way, path[32], new_path[32];
    int file;
    volatile uint64_t *map;
};

static pid_t children[PROCESSES_MAX];

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        _exit(1);
    }
}

static void end(int signal) {
    (void)signal;
    for (int n = 0; n < PROCESSES_MAX; n++)
        if (children[n] > 0)
            kill(children[n], SIGKILL);
    _exit(7);
}

static void put(int file, uint64_t count, off_t at) {
    check(pwrite(file, &count, sizeof count, at) == sizeof count, "write");
}

static void count_in(struct counter *counter, uint64_t count) {
    switch (counter->way) {
    case 'm':
        *counter->map = count;
        break;
    case 'w':
        put(counter->file, count, 0);
        break;
    case 'a':
        check(write(counter->file, &count, sizeof count) == sizeof count, "append");
        break;
    case 'r': {
        int file = open(counter->new_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        check(file >= 0, "create");
        put(file, count, 0);
        close(file);
        check(rename(counter->new_path, counter->path) == 0, "rename");
        break;
    }
    }
}

static void begin(struct counter *counter, int number, char way) {
    counter->way = way;
    snprintf(counter->path, sizeof counter->path, "%d-%c", number, way);
    snprintf(counter->new_path, sizeof counter->new_path, "%d-new", number);
    int flags = way == 'm' ? O_RDWR : way == 'a' ? O_WRONLY | O_APPEND : O_WRONLY;
    counter->file = open(counter->path, flags | O_CREAT | O_TRUNC, 0600);
    check(counter->file >= 0, "open");
    if (way == 'm') {
        check(ftruncate(counter->file, PAGE) == 0, "truncate");
        counter->map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, counter->file, 0);
        check(counter->map != MAP_FAILED, "mmap");
    } else if (way == 'r') {
        close(counter->file);
    }
    count_in(counter, 0);
}

int main(int argc, char **argv) {
    check(argc == 4, "usage");
    int files = atoi(argv[1]), processes = atoi(argv[2]), ways = (int)strlen(argv[3]);
    static struct counter counters[FILES_MAX];
    for (int n = 0; n < files; n++)
        begin(&counters[n], n, argv[3][n % ways]);
    int turns[PROCESSES_MAX][2];
    for (int n = 0; n < processes; n++)
        check(pipe(turns[n]) == 0, "pipe");
    signal(SIGTERM, end);
    for (int own = 0; own < processes; own++) {
        pid_t child = fork();
        check(child >= 0, "fork");
        if (child > 0) {
            children[own] = child;
            continue;
        }
        signal(SIGTERM, SIG_IGN);
        for (int n = own;; n = (n + processes) % files) {
            uint64_t count;
            check(read(turns[own][0], &count, sizeof count) == sizeof count, "turn");
            count_in(&counters[n], count);
            count += n == files - 1;
            check(write(turns[(own + 1) % processes][1], &count, sizeof count) == sizeof count, "pass");
        }
    }
    uint64_t first = 1;
    check(write(turns[0][1], &first, sizeof first) == sizeof first, "first");
    wait(NULL);
    end(0);
}
