/* A caller that costs little itself: the load that wrk does not make.
 *
 *   caller PORT -c CONNECTIONS [-C] (-d SECONDS | -n CALLS) [-r RATE] [-b BODY_BYTES] [-h HOST] [-p PATH]
 *
 * -C opens a connection for each call. -r makes calls at a fixed rate, evenly spread and whatever the answers do:
 * a call's time then counts from the moment at which it was due, so that a proxy that stalls is charged for all
 * calls that it kept waiting. Without -r each connection makes its next call when it has the last one's answer.
 * -b sends a body of that size with POST. All goes to 127.0.0.1; one JSON object comes out at the end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 16384, CHUNK = 1 << 18 };
static const int64_t SECOND = 1000000000, PATIENCE = 20 * SECOND;

struct connection {
    int fd;             /* -1: none */
    int busy;           /* a call is under way */
    int wants_out;      /* epoll tells when more can be written */
    int64_t due;        /* when the call under way was to begin */
    int64_t sent;       /* bytes of head and body */
    int64_t left;       /* bytes of the answer's body still to come; -1: the head is not whole yet */
    int head_length, ok, closes;
    char head[HEAD];
};

static struct sockaddr_in address = {.sin_family = AF_INET};
static int per_call, poller, number = 1;
static int64_t body_length, head_length, broken, bad, done, received;
static char request[1024], chunk[CHUNK];
static int64_t *times, times_room;
static struct connection *all;
static int *free_ones, first, are_free; /* a ring: who has been free for longest comes first */
static struct epoll_event *events;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

static void drop(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void watch(struct connection *c, int operation, int out) {
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event)) die("epoll_ctl");
    c->wants_out = out;
}

/* The call under way is over, well or not. */
static void finish(struct connection *c, int well) {
    c->busy = 0;
    if (!well) {
        broken++;
        drop(c);
        return;
    }
    if (done == times_room) {
        times_room = times_room ? 2 * times_room : 1 << 16;
        if (!(times = realloc(times, times_room * sizeof *times))) die("realloc");
    }
    times[done++] = now() - c->due;
    if (!c->ok) bad++;
    if (per_call || c->closes || c->sent < head_length + body_length) drop(c);
}

static void write_more(struct connection *c) {
    int64_t whole = head_length + body_length;
    while (c->sent < whole) {
        int in_head = c->sent < head_length;
        const char *from = in_head ? request + c->sent : chunk;
        int64_t size = in_head ? head_length - c->sent : whole - c->sent;
        if (size > CHUNK) size = CHUNK;
        int more = in_head && body_length ? MSG_MORE : 0;
        ssize_t count = send(c->fd, from, size, MSG_NOSIGNAL | more);
        if (count < 0) {
            if (errno == EAGAIN || errno == ENOTCONN || errno == EINPROGRESS) {
                if (!c->wants_out) watch(c, EPOLL_CTL_MOD, 1);
                return;
            }
            finish(c, 0);
            return;
        }
        c->sent += count;
    }
    if (c->wants_out) watch(c, EPOLL_CTL_MOD, 0);
}

static void begin(struct connection *c, int64_t due) {
    c->busy = 1;
    c->due = due;
    c->sent = c->head_length = c->ok = c->closes = 0;
    c->left = -1;
    if (c->fd < 0) {
        int one = 1;
        if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) < 0) die("socket");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
            finish(c, 0);
            return;
        }
        watch(c, EPOLL_CTL_ADD, 0);
    }
    write_more(c);
}

/* Reads status and length from a whole head. Answers without a length end with the connection. */
static void read_head(struct connection *c, const char *end) {
    c->ok = !strncmp(c->head, "HTTP/1.1 2", 10) || !strncmp(c->head, "HTTP/1.0 2", 10);
    c->left = INT64_MAX;
    for (char *line = strstr(c->head, "\r\n"); line && line < end; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, "content-length:", 15)) c->left = atoll(line + 17);
        if (!strncasecmp(line + 2, "connection: close", 17)) c->closes = 1;
    }
    if (c->left == INT64_MAX) c->closes = 1;
}

static void read_more(struct connection *c) {
    for (;;) {
        int in_head = c->left < 0;
        char *to = in_head ? c->head + c->head_length : chunk;
        ssize_t count = recv(c->fd, to, in_head ? HEAD - 1 - c->head_length : CHUNK, 0);
        if (count < 0 && errno == EAGAIN) return;
        if (count <= 0) {
            if (!c->busy) drop(c); /* an idle connection was closed, which is no failure */
            else finish(c, count == 0 && c->left == INT64_MAX);
            return;
        }
        received += count;
        if (in_head) {
            c->head_length += count;
            c->head[c->head_length] = 0;
            char *end = strstr(c->head, "\r\n\r\n");
            if (!end) {
                if (c->head_length < HEAD - 1) return;
                finish(c, 0);
                return;
            }
            read_head(c, end);
            count = c->head_length - (end + 4 - c->head);
        }
        if (c->left != INT64_MAX) c->left -= count;
        if (c->left <= 0) {
            finish(c, c->left == 0);
            return;
        }
        if (count < CHUNK && !in_head) return; /* that was all for now */
    }
}

/* Makes calls until they are enough or the time is over, and all answers are there. Gives the nanoseconds. */
static int64_t drive(double seconds, int64_t calls, double rate) {
    int64_t started = now(), end = seconds > 0 ? started + (int64_t)(seconds * SECOND) : INT64_MAX;
    int64_t begun = 0, last = started, at = started;
    double apart = rate > 0 ? SECOND / rate : 0;
    if (rate > 0) calls = (int64_t)(rate * seconds);
    for (;;) {
        int over = begun >= calls || (rate <= 0 && at >= end);
        while (!over && are_free) {
            int64_t due = rate > 0 ? started + (int64_t)(begun * apart) : at;
            if (due > at) break;
            struct connection *c = &all[free_ones[first]];
            first = (first + 1) % number;
            are_free--;
            begun++;
            begin(c, due);
            if (!c->busy) free_ones[(first + are_free++) % number] = c - all;
            over = begun >= calls;
        }
        if (over && are_free == number) break;
        int64_t until = last + PATIENCE; /* nothing at all for that long: what is under way is lost */
        if (!over && are_free && rate > 0) until = started + (int64_t)(begun * apart);
        int64_t wait = until > at ? until - at : 0;
        struct timespec timeout = {wait / SECOND, wait % SECOND};
        int ready = epoll_pwait2(poller, events, number, &timeout, NULL);
        if (ready < 0 && errno != EINTR) die("epoll_pwait2");
        at = now();
        if (ready > 0 || are_free == number) last = at;
        else if (at >= last + PATIENCE) {
            broken += number - are_free;
            break;
        }
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            int was_busy = c->busy;
            if (c->busy && events[i].events & EPOLLOUT) write_more(c);
            if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_more(c);
            if (was_busy && !c->busy) free_ones[(first + are_free++) % number] = c - all;
        }
    }
    return now() - started;
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double share(double of) { /* microseconds within which that share of the calls was answered */
    if (!done) return 0;
    int64_t at = (int64_t)(of * done);
    return times[at < done ? at : done - 1] / 1e3;
}

int main(int count, char **arguments) {
    int option;
    double seconds = 0, rate = 0;
    int64_t calls = INT64_MAX;
    const char *host = "localhost", *path = "/";
    while ((option = getopt(count, arguments, "c:Cd:n:r:b:h:p:")) != -1) {
        switch (option) {
        case 'c': number = atoi(optarg); break;
        case 'C': per_call = 1; break;
        case 'd': seconds = atof(optarg); break;
        case 'n': calls = atoll(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'b': body_length = atoll(optarg); break;
        case 'h': host = optarg; break;
        case 'p': path = optarg; break;
        default: return 2;
        }
    }
    if (optind != count - 1 || (seconds <= 0 && calls == INT64_MAX)) {
        fprintf(stderr, "see the head of caller.c for its arguments\n");
        return 2;
    }
    address.sin_port = htons(atoi(arguments[optind]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    head_length = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: %s\r\n%s",
                           body_length ? "POST" : "GET", path, host, per_call ? "Connection: close\r\n" : "");
    if (body_length)
        head_length += snprintf(request + head_length, sizeof request - head_length,
                                "Content-Length: %lld\r\n", (long long)body_length);
    head_length += snprintf(request + head_length, sizeof request - head_length, "\r\n");

    prctl(PR_SET_TIMERSLACK, 1);
    all = calloc(number, sizeof *all);
    free_ones = calloc(number, sizeof *free_ones);
    events = calloc(number, sizeof *events);
    are_free = number;
    if (!all || !free_ones || !events || (poller = epoll_create1(0)) < 0) die("start");
    for (int i = 0; i < number; i++) {
        all[i].fd = -1;
        free_ones[i] = i;
    }

    /* Connections that last are all opened, and used once, before it counts. */
    if (!per_call && seconds > 0) drive(0, number, 0);
    done = received = 0;
    double took = drive(seconds, calls, rate) / 1e9;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    qsort(times, done, sizeof *times, by_size);
    printf("{\"requests\": %lld, \"micros\": %.0f, \"p50\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"bad\": %lld, "
           "\"broken\": %lld, \"bytes\": %lld, \"cpu\": %.6f}\n",
           (long long)done, took * 1e6, share(0.5), share(0.99), share(0.999), (long long)bad, (long long)broken,
           (long long)received,
           used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    return 0;
}
