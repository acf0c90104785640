// Who made a socket, as others are told: SO_PEERCRED and SO_PEERGROUPS of Unix sockets, owners of sockets and pipes. An
// ordinary user's program, with sockets of its own, of its child's, of a process that has ended, and of the time when
// it was root.
#include <grp.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "unix_names.h"
#include "workload.h"

using namespace workload;

namespace {

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif

constexpr uid_t kUser = 2100;
constexpr gid_t kGroup = 2200;

struct Told {
  ucred who{};
  std::vector<gid_t> groups;
  uid_t uid = 0;
  gid_t gid = 0;  ///< the file's
};

Told ask(int fd) {
  Told told;
  socklen_t length = sizeof told.who;
  must(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &told.who, &length), "SO_PEERCRED");
  told.groups.resize(16);
  length = static_cast<socklen_t>(told.groups.size() * sizeof(gid_t));
  const bool some = getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, told.groups.data(), &length) == 0;
  told.groups.resize(some ? length / sizeof(gid_t) : 0);
  struct stat st {};
  must(fstat(fd, &st), "fstat");
  told.uid = st.st_uid;
  told.gid = st.st_gid;
  return told;
}

struct Socket {
  std::string name;
  int fd;
  Told told;
};

/// What must be told for ever, recorded when it is added.
class Sockets {
 public:
  int add(const std::string& name, int fd) {
    all_.push_back({name, fd, ask(fd)});
    return fd;
  }
  int add(const std::string& name, int fd, pid_t pid, uid_t uid) {
    add(name, fd);
    expect_equal(all_.back().told.who.pid, pid, name + ": pid at the start");
    expect_equal(all_.back().told.who.uid, uid, name + ": uid at the start");
    return fd;
  }
  void verify() const {
    for (const Socket& s : all_) {
      const Told now = ask(s.fd);
      expect_equal(now.who.uid, s.told.who.uid, s.name + ": uid of the peer");
      expect_equal(now.who.gid, s.told.who.gid, s.name + ": gid of the peer");
      expect(now.groups == s.told.groups, s.name + ": groups of the peer changed");
      expect_equal(now.uid, s.told.uid, s.name + ": owner");
      expect_equal(now.gid, s.told.gid, s.name + ": group");
      // In place, somebody else may have got the number of a process that has ended.
      if (s.name.starts_with("ended") && kill(s.told.who.pid, 0) == 0) continue;
      expect_equal(now.who.pid, s.told.who.pid, s.name + ": pid of the peer");
    }
  }

 private:
  std::vector<Socket> all_;
};

int listening(const std::string& name, int type) {
  const int fd = bound(name, type);
  must(listen(fd, 7), "listen");
  return fd;
}

int connected(int fd, const std::string& name) {
  socklen_t n = 0;
  const sockaddr_un a = address(name, n);
  return must(connect(fd, reinterpret_cast<const sockaddr*>(&a), n), "connect"), fd;
}

int connected(const std::string& name, int type) {
  return connected(must(socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "socket"), name);
}

int accepted(int listener) { return must(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), "accept"); }

void pair(int* ends, int type) { must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), "socketpair"); }

int reusing_socket() {
  const int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"), one = 1;
  must(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one), "SO_REUSEPORT");
  return fd;
}

int tcp(sockaddr_in& address) {
  const int fd = reusing_socket();
  must(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), "bind of TCP");
  must(listen(fd, 3), "listen of TCP");
  socklen_t length = sizeof address;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), "getsockname");
  return fd;
}

bool can_join(const sockaddr_in& address) {
  const int fd = reusing_socket();
  const bool joined = bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  close(fd);
  return joined;
}

sockaddr_in loopback() {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}

/// In a child that ends: what it makes in its descriptor table, which is ours too.
pid_t in_ended_child(const std::function<void()>& work) {
  const auto child =
      static_cast<pid_t>(must(syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, 0), "clone"));
  if (child == 0) {
    work();
    _exit(0);
  }
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  expect(status == 0, "the child that ends failed");
  return child;
}

struct Shared {
  std::atomic<uint32_t> asked, answered;
  char failure[200];
};

[[noreturn]] void child_main(Shared& shared, const std::string& name) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  Sockets sockets;
  sockets.add("child's client", connected(name, SOCK_SEQPACKET), getppid(), kUser);
  shared.answered = 1;
  for (uint32_t seen = 0; getppid() != 1;) {
    sleep_ms(5);
    if (shared.asked == seen) continue;
    seen = shared.asked;
    shared.failure[0] = 0;
    try {
      sockets.verify();
    } catch (const std::exception& e) {
      std::snprintf(shared.failure, sizeof shared.failure, "%s", e.what());
    }
    shared.answered = seen + 1;
  }
  _exit(0);
}

/// Of a message that waits, with SO_PASSCRED.
void expect_sender(int fd, pid_t pid) {
  char byte = 0;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))] = {};
  iovec iov{&byte, 1};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  must(recvmsg(fd, &header, MSG_DONTWAIT), "recvmsg");
  ucred from{};
  const cmsghdr* c = CMSG_FIRSTHDR(&header);
  expect(c != nullptr && c->cmsg_type == SCM_CREDENTIALS, "a message does not say who sent it");
  std::memcpy(&from, CMSG_DATA(c), sizeof from);
  expect_equal(from.pid, pid, "the sender's pid");
  expect_equal(from.uid, kUser, "the sender's uid");
  expect_equal(from.gid, kGroup, "the sender's gid");
}

void give_up_root(const std::string& dir) {
  must(chown(dir.c_str(), kUser, kGroup), "chown");
  for (const auto& file : std::filesystem::directory_iterator(dir))
    must(chown(file.path().c_str(), kUser, kGroup), "chown");
  const gid_t groups[] = {2201, 2240};
  must(setgroups(2, groups), "setgroups");
  must(setresgid(kGroup, kGroup, kGroup), "setresgid");
  must(setresuid(kUser, kUser, kUser), "setresuid");
  must(prctl(PR_SET_DUMPABLE, 1), "PR_SET_DUMPABLE");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const pid_t us = getpid();
        Sockets sockets;
        int ends[2];
        pair(ends, SOCK_STREAM);
        sockets.add("root's pair", ends[0], us, 0);
        sockets.add("root's pair, other end", ends[1], us, 0);
        sockaddr_in roots_port = loopback(), port = loopback();
        sockets.add("root's TCP socket", tcp(roots_port));
        give_up_root(w.dir());

        for (const int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) {
          pair(ends, type);
          for (const int end : ends) sockets.add("pair of type " + std::to_string(type), end, us, kUser);
        }
        pair(ends, SOCK_STREAM);
        sockets.add("pair whose other end is closed", ends[0], us, kUser);
        close(ends[1]);

        const std::string path = w.path("listener"), abstract = std::string(1, '\0') + w.path("peercred");
        const int listener = sockets.add("listener", listening(path, SOCK_STREAM), us, kUser);
        const int client = sockets.add("client", connected(path, SOCK_STREAM), us, kUser);
        const int server = sockets.add("accepted", accepted(listener), us, kUser);
        const int packets = sockets.add("abstract listener", listening(abstract, SOCK_SEQPACKET), us, kUser);
        auto* shared = shared_memory<Shared>();
        const pid_t child = must(fork(), "fork");
        if (child == 0) child_main(*shared, abstract);
        await([&] { return shared->answered == 1; }, "the child");
        sockets.add("accepted from the child", accepted(packets), child, kUser);

        int* made = shared_memory<int>(4);
        const pid_t ended = in_ended_child([&] {
          pair(made, SOCK_STREAM);
          made[2] = listening(w.path("ended"), SOCK_STREAM);
          made[3] = connected(path, SOCK_STREAM);
        });
        for (int i = 0; i < 3; ++i) sockets.add("ended process's socket " + std::to_string(i), made[i], ended, kUser);
        sockets.add("ended process's client", made[3], us, kUser);
        sockets.add("ended process's accepted", accepted(listener), ended, kUser);
        (void)in_ended_child([&] { made[3] = connected(path, SOCK_STREAM); });
        close(made[3]);
        const int lone = sockets.add("ended process's closed client", accepted(listener));

        const int one = bound(w.path("one"), SOCK_DGRAM), two = bound(w.path("two"), SOCK_DGRAM);
        connected(one, w.path("two"));
        connected(two, w.path("one"));
        sockets.add("datagram sockets connected by name", one);
        sockets.add("datagram sockets connected by name, the other", two);
        sockets.add("TCP socket", tcp(port));
        sockets.add("fresh socket", must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
        int senders[2];
        const int on = 1;
        pair(senders, SOCK_DGRAM);
        must(setsockopt(senders[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on), "SO_PASSCRED");
        must(write(senders[0], "m", 1), "write");
        int pipe[2];
        must(pipe2(pipe, O_CLOEXEC), "pipe2");

        w.serve([&] {
          sockets.verify();
          char c = 'x';
          expect(write(client, &c, 1) == 1 && read(server, &c, 1) == 1, "the connection is gone");
          expect(recv(lone, &c, 1, MSG_DONTWAIT) == 0, "a closed client's connection has no end of file");
          expect(write(one, &c, 1) == 1 && read(two, &c, 1) == 1, "the datagram sockets are not connected");
          expect_sender(senders[1], us);
          must(write(senders[0], "m", 1), "write");
          Sockets fresh;
          const int new_client = fresh.add("new client", connected(path, SOCK_STREAM), us, kUser);
          const int new_server = fresh.add("newly accepted", accepted(listener), us, kUser);
          close(new_client);
          close(new_server);
          expect(can_join(port), "the user's socket cannot join its own group (SO_REUSEPORT)");
          expect(!can_join(roots_port), "a user's socket joined root's (SO_REUSEPORT)");
          const std::string again = "/proc/self/fd/" + std::to_string(pipe[1]);
          close(must(open(again.c_str(), O_WRONLY | O_CLOEXEC), "open of its own pipe again"));
          const uint32_t n = ++shared->asked;
          await([&] { return shared->answered == n + 1; }, "the child's answer");
          expect(shared->failure[0] == 0, shared->failure);
        });
      },
      argv[0]);
}
