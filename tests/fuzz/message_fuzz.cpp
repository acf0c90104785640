// A hostile peer on the control connection. A record is a frame: the kind its flags, the id its type, the payload a
// wire::Message. What is understood is used as the agents use it, up to the tree that the shells would become.
#include <sys/socket.h>

#include "core/base/error.h"
#include "core/restore/address_space.h"
#include "core/restore/tree_order.h"
#include "fuzz.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/layout_wire.h"
#include "migrate/session/wire/reserve_wire.h"
#include "pageserver/codec.h"
#include "records.h"

namespace migrate::fuzz {
namespace {

constexpr size_t kMostBytes = 128 << 10;  ///< fits into a socket's buffer
constexpr size_t kMostTasks = 64;         ///< of which a change is planned
constexpr uint8_t kBare = 0x80;           ///< a record of this kind: bytes without a frame

void check_memory(MemoryId memory) {
  demand(memory.kind == MemoryId::Kind::task || memory.kind == MemoryId::Kind::shmem, "a memory of no kind");
}

class Agent {
 public:
  void take(const wire::Message& m) {
    switch (m.body_case()) {
      case wire::Message::kHello:
        check_hello_version(m.hello());
        incompatibilities(m.hello(), hello_);
        incompatibilities(hello_, m.hello());
        page_codecs(m.hello());
        hello_ = m.hello();
        return;
      case wire::Message::kBegin:
        codecs_from_wire(m.begin().page_codecs());
        return;
      case wire::Message::kLayout:
        if (parts_.add(m.layout())) follow(parts_.take());
        return;
      case wire::Message::kDiscards:
      case wire::Message::kHuge:
        for (const PageDiscard& d : from_wire(m.has_huge() ? m.huge() : m.discards())) {
          check_memory(d.memory);
          demand(d.address <= kUserEnd && d.pages <= (kUserEnd - d.address) / kPageSize, "a discard out of range");
        }
        return;
      case wire::Message::kReserve:
        return reserve(from_wire(m.reserve()));
      case wire::Message::kLayoutReady:
        for (const wire::MemoryName& name : m.layout_ready().cold()) check_memory(from_wire(name));
        return;
      case wire::Message::kFillReady:
        for (const wire::MemoryName& name : m.fill_ready().cold()) check_memory(from_wire(name));
        return;
      default:
        return;
    }
  }

 private:
  /// Sent on, it is the same.
  static void reserve(const std::vector<PageReserve>& wanted) {
    uint64_t pages = 0, again = 0;
    for (const PageReserve& r : wanted) {
      check_memory(r.memory);
      demand(r.address <= kUserEnd && r.pages <= (kUserEnd - r.address) / kPageSize, "a reserve out of range");
      pages += r.pages;
    }
    for (const wire::Reserve& part : to_wire(wanted))
      for (const PageReserve& r : from_wire(part)) again += r.pages;
    demand(again == pages, "a reserve that changes on its way");
  }
  void follow(TreeLayout layout) {
    std::set<uint64_t> objects;
    for (const TreeLayout::Object& o : layout.objects) demand(objects.insert(o.id).second, "a shared object twice");
    for (const wire::Layout& part : to_wire(layout, 1)) again_.add(part);
    demand(again_.take() == layout, "a layout that changes on its way");
    std::vector<TaskNode> tasks = read_tree(layout);
    if (tasks.size() <= kMostTasks) try {
        if (tree_.empty()) {
          plan_tree(tasks, false);
        } else {
          plan_change(tree_, tasks);
        }
      } catch (const Error&) {  // then all is made anew
      }
    if (tasks.size() <= kMostTasks) tree_ = std::move(tasks);
  }

  wire::Hello hello_;
  LayoutParts parts_, again_;
  std::vector<TaskNode> tree_;
};

std::vector<std::byte> frames(const std::vector<Record>& records) {
  std::vector<std::byte> out(8);
  Packer(out).put(FrameChannel::kMagic).put(uint16_t{1}).put(uint16_t{0});
  for (const Record& r : records) {
    if ((r.kind & kBare) == 0) {
      const size_t at = out.size();
      out.resize(at + 8);
      Packer(std::span(out).subspan(at))
          .put(static_cast<uint16_t>(r.id))
          .put(uint16_t{r.kind})
          .put(static_cast<uint32_t>(r.payload.size()));
    }
    out.insert(out.end(), r.payload.begin(), r.payload.end());
  }
  return out;
}

/// A message that was received can be sent.
void send_back(ControlChannel& channel, int feeder, const wire::Message& message) {
  constexpr size_t kFitsIntoASocket = 32 << 10;
  if (message.ByteSizeLong() > kFitsIntoASocket) return;
  channel.send(message);
  std::byte drained[4096];
  while (::recv(feeder, drained, sizeof drained, MSG_DONTWAIT) > 0) {
  }
}

wire::Layout small_layout(uint32_t tasks) {
  wire::Layout layout;
  for (uint32_t i = 0; i < tasks; ++i) {
    wire::Layout::Task& task = *layout.add_tasks();
    task.set_pid(static_cast<int32_t>(10 + i));
    task.set_ppid(i == 0 ? 0 : 10);
    task.set_pgid(10);
    task.set_sid(i == 2 ? 12 : 10);
    for (uint64_t n = 0; n < 3; ++n) {
      wire::Layout::Area& area = *task.add_areas();
      area.set_start(0x10000000 + n * 0x100000);
      area.set_end(area.start() + 0x4000);
      if (n == 1) area.set_file("/usr/bin/program");
      if (n == 1) area.set_offset(0x1000);
    }
  }
  wire::Layout::Object& object = *layout.add_objects();
  object.set_id(77);
  object.set_bytes(0x8000);
  object.set_memfd(true);
  object.set_name("memory");
  return layout;
}

std::vector<wire::Message> messages() {
  std::vector<wire::Message> all(17);
  *all[0].mutable_hello() = host_facts();
  all[1].mutable_clock_pong()->set_monotonic_ns(5);
  wire::Check& check = *all[2].mutable_check();
  check.add_files()->set_path("/etc/passwd");
  check.mutable_files(0)->add_locks()->set_kind(1);
  check.add_ports()->set_address(std::string(4, '\1'));
  check.mutable_ports(0)->set_port(80);
  check.add_pids(10);
  check.add_uids(1000);
  wire::Begin& begin = *all[3].mutable_begin();
  begin.set_label("pid:10 (program)");
  begin.set_streams(2);
  begin.set_monotonic_ns(1000);
  begin.set_page_codecs(3);
  *all[4].mutable_layout() = small_layout(3);
  *all[5].mutable_layout() = small_layout(2);
  wire::Discards::Run& discard = *all[6].mutable_discards()->add_runs();
  discard.set_kind(1);
  discard.set_id(10);
  discard.set_address(0x10000000);
  discard.set_pages(2);
  wire::Reserve::Run& reserve = *all[7].mutable_reserve()->add_runs();
  reserve.set_kind(1);
  reserve.set_id(10);
  reserve.set_address(0x10000000);
  reserve.set_pages(2);
  all[8].mutable_layout_ready()->add_cold()->set_kind(1);
  all[9].mutable_fill_ready()->add_cold()->set_kind(2);
  all[10].mutable_images_part()->set_data("images");
  all[11].mutable_answer()->set_reason("because");
  all[12].mutable_check_reply()->add_refusals("not here");
  all[13].mutable_begun()->add_stream_tokens(std::string(16, 't'));
  all[14].mutable_abort()->set_reason("no more");
  all[15].mutable_refused()->set_sentence("no");
  all[16].mutable_refused()->set_stale(true);
  return all;
}

}  // namespace

const Target kTarget{"message_fuzz", true};

void run(std::span<const std::byte> input) {
  const std::vector<std::byte> bytes = frames(records_of(input));
  if (bytes.size() > kMostBytes) return;
  int fds[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "make", "a socket pair");
  const Fd feeder(fds[0]);
  ControlChannel channel(raw_stream(Fd(fds[1])));
  if (::send(feeder.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) return;
  ::shutdown(feeder.get(), SHUT_WR);
  Agent agent;
  const Deadline deadline = Deadline::in(std::chrono::seconds(1));
  try {
    channel.open(deadline);
    if (bytes.size() % 8 == 7) agent.take(channel.expect(wire::Message::kHello, deadline));
    if (bytes.size() % 8 == 6) channel.set_session({}, 1);
    for (;;) try {
        const wire::Message message = channel.receive(deadline);
        send_back(channel, feeder.get(), message);
        agent.take(message);
      } catch (const Refusal&) {  // of one message: others may follow here
      }
  } catch (const Error&) {  // as it should be
  }
  channel.refuse("enough", bytes.size() % 2 != 0);
}

std::vector<std::vector<std::byte>> seeds() {
  std::vector<std::vector<std::byte>> all(1);
  for (const wire::Message& m : messages()) {
    std::vector<std::byte> one;
    for (std::vector<std::byte>* seed : {&all.front(), &one})
      append_record(*seed, 0, static_cast<uint32_t>(m.body_case()), as_bytes_of(m.SerializeAsString()));
    all.push_back(one);
  }
  // Of a session, and of lengths that make run() ask for one, and for a hello.
  for (size_t pad = 0; pad < 8; ++pad) {
    wire::Message abort;
    abort.mutable_abort()->set_reason(std::string(pad, 'x'));
    abort.set_session(std::string(std::tuple_size_v<SessionId>, '\0'));
    append_record(all.emplace_back(), 0, static_cast<uint32_t>(abort.body_case()),
                  as_bytes_of(abort.SerializeAsString()));
  }
  return all;
}

}  // namespace migrate::fuzz
