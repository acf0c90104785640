// System V message queues: messages of all types and sizes in their order, limits, owners, and a process that waits for
// a message.
#include <signal.h>
#include <sys/prctl.h>

#include "sysv.h"

using namespace workload;

namespace {

constexpr int kMessages = 40;
constexpr long kToChild = 500, kFromChild = 501;

struct Text {
  long type;
  uint8_t bytes[4096];
};

size_t size_of(int n) { return n % 7 == 0 ? 0 : static_cast<size_t>(n * 37 % 300); }

void send(int queue, long type, size_t bytes, uint64_t salt) {
  Text text{type, {}};
  fill_pattern(text.bytes, bytes, salt);
  must(msgsnd(queue, &text, bytes, IPC_NOWAIT), "msgsnd");
}

size_t receive(int queue, long type, Text& text, int flags = 0) {
  return static_cast<size_t>(must(msgrcv(queue, &text, sizeof text.bytes, type, flags), "msgrcv"));
}

msqid_ds look(int queue) {
  msqid_ds ds{};
  must(msgctl(queue, IPC_STAT, &ds), "IPC_STAT");
  return ds;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int full = noted(w, 'q', must(msgget(key_of(1), IPC_CREAT | IPC_EXCL | 0620), "msgget"));
        const int talk = noted(w, 'q', must(msgget(IPC_PRIVATE, 0600), "msgget"));
        for (int i = 0; i < kMessages; ++i) send(full, 1 + i % 5, size_of(i), static_cast<uint64_t>(i));
        msqid_ds ds = look(full);
        ds.msg_qbytes = 9000;
        ds.msg_perm.uid = 1234;
        must(msgctl(full, IPC_SET, &ds), "IPC_SET");
        ds = look(full);
        if (must(fork(), "fork") == 0) {
          prctl(PR_SET_PDEATHSIG, SIGKILL);
          for (Text text{};;) {
            if (msgrcv(talk, &text, sizeof text.bytes, kToChild, 0) == -1) std::_Exit(7);
            text.type = kFromChild;
            must(msgsnd(talk, &text, 4, 0), "msgsnd");
          }
        }
        uint32_t asked = 0;
        w.serve([&] {
          expect_equal(msgget(key_of(1), 0), full, "what the key leads to");
          const msqid_ds now = look(full);
          expect_equal(now.msg_qnum, ds.msg_qnum, "the number of messages");
          expect_equal(now.__msg_cbytes, ds.__msg_cbytes, "the number of bytes");
          expect_equal(now.msg_qbytes, 9000U, "the limit");
          expect_equal(now.msg_perm.uid, 1234U, "the owner");
          expect_equal(now.msg_perm.mode & 0777, 0620, "the mode");
          Text text{};
          // Each is taken out and put back behind the others: after all, the order is the same.
          for (int i = 0; i < kMessages; ++i) {
            const size_t n = receive(full, 0, text, IPC_NOWAIT);
            expect_equal(n, size_of(i), "the size of message " + std::to_string(i));
            expect_equal(text.type, 1 + i % 5, "the type of message " + std::to_string(i));
            expect_pattern(text.bytes, n, static_cast<uint64_t>(i), "message " + std::to_string(i));
            send(full, text.type, n, static_cast<uint64_t>(i));
          }
          Text question{kToChild, {}};
          ++asked;
          std::memcpy(question.bytes, &asked, sizeof asked);
          must(msgsnd(talk, &question, sizeof asked, 0), "msgsnd");
          uint32_t answer = 0;
          await([&] { return msgrcv(talk, &text, sizeof text.bytes, kFromChild, IPC_NOWAIT) != -1; }, "an answer");
          std::memcpy(&answer, text.bytes, sizeof answer);
          expect_equal(answer, asked, "the answer");
        });
      },
      "sysv_msg");
}
