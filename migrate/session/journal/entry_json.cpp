// What a journal's file says: JSON, which an operator may read, and somebody may have damaged.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "migrate/session/journal/journal.h"
#include "pageserver/rate_limiter.h"

namespace migrate {
namespace {

using nlohmann::json;

/// nlohmann cuts what does not fit, and turns negative numbers and fractions into others.
uint64_t number_from_json(const json& j) {
  if (!j.is_number_unsigned()) throw std::out_of_range("a number is not what it should be");
  return j.get<uint64_t>();
}

/// Whoever reads a journal may kill what it names: never 0 or -1, which kill(2) takes for many.
pid_t pid_from_json(const json& j) {
  const uint64_t pid = number_from_json(j);
  if (pid == 0 || pid > uint64_t{kMaxPid}) throw std::out_of_range("a pid is out of range");
  return static_cast<pid_t>(pid);
}

json record_to_json(const FreezerCgroup::Record& record) {
  json from = json::array();
  for (const auto& [pid, folder] : record.came_from) from.push_back({{"pid", pid}, {"folder", folder}});
  return {{"v2", record.v2}, {"folders", record.folders}, {"came_from", from}};
}

FreezerCgroup::Record record_from_json(const json& j) {
  FreezerCgroup::Record record;
  record.v2 = j.at("v2").get<bool>();
  record.folders = j.at("folders").get<std::vector<std::string>>();
  for (const json& one : j.at("came_from")) {
    record.came_from[pid_from_json(one.at("pid"))] = one.at("folder").get<std::string>();
  }
  return record;
}

/// Whoever reads them removes them.
std::vector<std::string> lazy_cgroups_from_json(const json& j, const SessionId& id) {
  constexpr size_t kMost = 64;
  auto folders = j.get<std::vector<std::string>>();
  const std::string mark = "/" + lazy_cgroup_mark(id);
  const bool ours = std::ranges::all_of(folders, [&](const std::string& folder) {
    return folder.starts_with('/') && folder.substr(folder.rfind('/')).starts_with(mark);
  });
  if (!ours || folders.size() > kMost) throw std::out_of_range("a cgroup is not the session's");
  return folders;
}

json ipc_to_json(const IpcObject& o) {
  return {{"kind", static_cast<int>(o.kind)},
          {"id", o.id},
          {"key", o.key},
          {"cuid", o.cuid},
          {"cgid", o.cgid},
          {"changed", o.changed},
          {"size", o.size},
          {"creator", o.creator},
          {"used_a", o.used_a},
          {"used_b", o.used_b}};
}

json lock_to_json(const HeldLock& h) {
  return {{"number", h.number},
          {"device", h.device},
          {"inode", h.inode},
          {"pid", h.pid.get()},
          {"fd", h.fd},
          {"kind", h.lock.kind},
          {"type", h.lock.type},
          {"start", h.lock.start},
          {"length", h.lock.length},
          {"path", h.path}};
}

HeldLock lock_from_json(const json& j) {
  HeldLock h;
  h.number = j.at("number").get<uint32_t>();
  h.pid = Pid(pid_from_json(j.at("pid")));
  h.fd = j.at("fd").get<int>();
  h.lock = {j.at("kind").get<uint32_t>(), j.at("type").get<uint32_t>(), j.at("start").get<int64_t>(),
            j.at("length").get<int64_t>()};
  h.device = number_from_json(j.at("device"));
  h.inode = number_from_json(j.at("inode"));
  h.path = j.at("path").get<std::string>();
  const bool kind = h.lock.kind == kLockPosix || h.lock.kind == kLockFlock || h.lock.kind == kLockDescription;
  const bool type = h.lock.type == F_RDLCK || h.lock.type == F_WRLCK;
  if (!kind || !type || h.fd < 0 || h.lock.start < 0 || h.lock.length < 0)
    throw std::out_of_range("a lock that cannot be");
  return h;
}

IpcObject ipc_from_json(const json& j) {
  IpcObject o;
  const int kind = j.at("kind").get<int>();
  if (kind < 1 || kind > 3) throw std::out_of_range("a System V object of no kind");
  o.kind = static_cast<IpcKind>(kind);
  o.id = j.at("id").get<int>();
  o.key = j.at("key").get<uint32_t>();
  o.cuid = j.at("cuid").get<uint32_t>();
  o.cgid = j.at("cgid").get<uint32_t>();
  o.changed = j.at("changed").get<int64_t>();
  o.size = j.at("size").get<uint64_t>();
  o.creator = j.at("creator").get<pid_t>();
  o.used_a = j.at("used_a").get<int64_t>();
  o.used_b = j.at("used_b").get<int64_t>();
  return o;
}

json feed_to_json(const FeedSettings& feed) {
  json codecs = json::array();
  if (feed.codecs.lz4) codecs.push_back("lz4");
  if (feed.codecs.zstd) codecs.push_back("zstd");
  return {{"bandwidth_limit", feed.bandwidth_limit},
          {"compress", text_of(feed.compression)},
          {"codecs", codecs},
          {"streams", feed.streams}};
}

FeedSettings feed_from_json(const json& j) {
  FeedSettings feed;
  feed.bandwidth_limit = number_from_json(j.at("bandwidth_limit"));
  if (feed.bandwidth_limit != 0 &&
      (feed.bandwidth_limit < kLeastBandwidthLimit || feed.bandwidth_limit > kMostBandwidthLimit))
    throw std::out_of_range("a bandwidth limit is out of range");
  const auto compression = parse_compression(j.at("compress").get<std::string>());
  if (!compression) throw std::out_of_range("pages cannot be packed so");
  feed.compression = *compression;
  for (const json& codec : j.at("codecs")) {
    const bool lz4 = codec.get<std::string>() == "lz4", zstd = codec.get<std::string>() == "zstd";
    if (!lz4 && !zstd) throw std::out_of_range("a codec is not known");
    feed.codecs.lz4 |= lz4;
    feed.codecs.zstd |= zstd;
  }
  const uint64_t streams = j.contains("streams") ? number_from_json(j.at("streams")) : 1;
  if (streams < 1 || streams >= kMaxPageStreams) throw std::out_of_range("a number of streams is out of range");
  feed.streams = static_cast<int>(streams);
  return feed;
}

json task_to_json(const TaskId& task) { return {{"pid", task.pid}, {"start", task.start_time}}; }
TaskId task_from_json(const json& j) { return {pid_from_json(j.at("pid")), number_from_json(j.at("start"))}; }

}  // namespace

std::string JournalEntry::to_json() const {
  json tasks_json = json::array();
  for (const TaskId& task : tasks) tasks_json.push_back(task_to_json(task));
  json j = {{"version", 1},     {"session", to_hex(id)},    {"role", name_of(role)},   {"state", name_of(state)},
            {"epoch", epoch},   {"peer_epoch", peer_epoch}, {"boot_id", boot_id},      {"label", label},
            {"peer", peer},     {"peer_name", peer_name},   {"tasks", tasks_json},     {"peer_settled", peer_settled},
            {"reason", reason}, {"created_ns", created_ns}, {"updated_ns", updated_ns}};
  if (!tls_name.empty()) j["tls_name"] = tls_name;
  if (init) j["init"] = task_to_json(*init);
  if (!socket_folders.empty()) j["socket_folders"] = socket_folders;
  if (cgroup) j["cgroup"] = record_to_json(*cgroup);
  if (lazy) j["lazy"] = true;
  if (!lazy_cgroups.empty()) j["lazy_cgroups"] = lazy_cgroups;
  for (const IpcObject& o : left_behind) j["left_behind"].push_back(ipc_to_json(o));
  for (const HeldLock& lock : locks) j["locks"].push_back(lock_to_json(lock));
  if (!lost_locks.empty()) j["lost_locks"] = lost_locks;
  if (feed) j["feed"] = feed_to_json(*feed);
  if (!given_up.empty()) j["given_up"] = given_up;
  if (source_runs) j["source_runs"] = true;
  return j.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

JournalEntry JournalEntry::from_json(const std::string& text, const std::string& name) {
  try {
    const json j = json::parse(text);
    if (number_from_json(j.at("version")) != 1) throw Corrupt("journal " + name, "it is of another version");
    const auto session = session_from_hex(j.at("session").get<std::string>());
    const auto role = role_named(j.at("role").get<std::string>());
    const auto state = state_named(j.at("state").get<std::string>());
    if (!session || !role || !state) throw Corrupt("journal " + name, "unknown session, role or state");
    JournalEntry e;
    e.id = *session;
    e.role = *role;
    e.state = *state;
    e.epoch = number_from_json(j.at("epoch"));
    e.peer_epoch = number_from_json(j.at("peer_epoch"));
    e.boot_id = j.at("boot_id").get<std::string>();
    e.label = j.at("label").get<std::string>();
    e.peer = j.at("peer").get<std::string>();
    e.peer_name = j.at("peer_name").get<std::string>();
    if (j.contains("tls_name")) e.tls_name = j.at("tls_name").get<std::string>();
    for (const json& task : j.at("tasks")) e.tasks.push_back(task_from_json(task));
    if (j.contains("init")) e.init = task_from_json(j.at("init"));
    if (j.contains("socket_folders")) e.socket_folders = j.at("socket_folders").get<std::vector<std::string>>();
    if (j.contains("cgroup")) e.cgroup = record_from_json(j.at("cgroup"));
    if (j.contains("lazy")) e.lazy = j.at("lazy").get<bool>();
    if (j.contains("lazy_cgroups")) e.lazy_cgroups = lazy_cgroups_from_json(j.at("lazy_cgroups"), e.id);
    if (j.contains("left_behind"))
      for (const json& one : j.at("left_behind")) e.left_behind.push_back(ipc_from_json(one));
    if (j.contains("locks"))
      for (const json& one : j.at("locks")) e.locks.push_back(lock_from_json(one));
    if (j.contains("feed")) e.feed = feed_from_json(j.at("feed"));
    if (j.contains("lost_locks")) e.lost_locks = j.at("lost_locks").get<std::string>();
    if (j.contains("given_up")) e.given_up = j.at("given_up").get<std::string>();
    if (j.contains("source_runs")) e.source_runs = j.at("source_runs").get<bool>();
    e.peer_settled = j.at("peer_settled").get<bool>();
    e.reason = j.at("reason").get<std::string>();
    e.created_ns = static_cast<int64_t>(number_from_json(j.at("created_ns")));
    e.updated_ns = static_cast<int64_t>(number_from_json(j.at("updated_ns")));
    return e;
  } catch (const json::exception& e) {
    throw Corrupt("journal " + name, e.what());
  } catch (const std::out_of_range& e) {
    throw Corrupt("journal " + name, e.what());
  }
}

}  // namespace migrate
