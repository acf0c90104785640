#include "core/restore/tree_order.h"

#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "core/files/terminal_dump.h"
#include "core/files/terminal_restore.h"
#include "core/files/terminal_state.h"
#include "core/image/magic.h"
#include "core/restore/address_space.h"
#include "ext/ext.pb.h"
#include "images/core.pb.h"
#include "images/pstree.pb.h"

namespace migrate {
namespace {

constexpr size_t kMaxTasks = 100'000;  // each becomes a process
constexpr size_t kMaxThreads = 1'000'000;
constexpr uint32_t kTaskDead = 2;  // CRIU's task states
constexpr uint32_t kTaskZombie = 6;
constexpr uint32_t kTaskStopped = 3;
constexpr uint32_t kTaskAlive = 1;

std::string task_name(pid_t pid) { return "task " + std::to_string(pid); }

pid_t checked_pid(uint32_t value, bool zero_ok) {
  if (value > uint32_t{kMaxPid} || (value == 0 && !zero_ok)) throw Corrupt("pstree.img", "a pid is out of range");
  return static_cast<pid_t>(value);
}

TaskNode node_of(const img::pstree_entry& e) {
  TaskNode n;
  n.pid = checked_pid(e.pid(), false);
  n.ppid = checked_pid(e.ppid(), true);
  n.pgid = checked_pid(e.pgid(), true);
  n.sid = checked_pid(e.sid(), true);
  for (const uint32_t tid : e.threads()) n.threads.push_back(checked_pid(tid, false));
  const auto leader = std::find(n.threads.begin(), n.threads.end(), n.pid);
  if (leader != n.threads.end()) {
    std::rotate(n.threads.begin(), leader, leader + 1);
  } else {
    n.threads.insert(n.threads.begin(), n.pid);
  }
  return n;
}

/// Its shell, which is root's, ends itself so: it must end.
void check_exit(const std::string& image, int status) {
  const int signal = WTERMSIG(status);
  const bool stops = signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
  const bool ends = WIFEXITED(status) || (WIFSIGNALED(status) && signal < NSIG && !stops);
  if (!ends) throw Corrupt(image, "a dead task has an impossible exit code");
}

uint32_t state_of(const ImageSet& images, pid_t pid) {
  const std::string name = image_name("core", static_cast<uint64_t>(pid));
  img::core_entry core;
  images.need(name, magic::kCore, core);
  if (!core.has_tc()) throw Corrupt(name, "the task part is missing");
  const uint32_t state = core.tc().task_state();
  if (state == kTaskZombie || state == kTaskDead) check_exit(name, static_cast<int>(core.tc().exit_code()));
  if (state == kTaskZombie) return kTaskDead;
  if (state != kTaskAlive && state != kTaskDead && state != kTaskStopped) throw Corrupt(name, "unknown task state");
  return state;
}

int checked_signal(uint32_t value) {
  if (value >= NSIG) throw Corrupt("the images or the layout", "a task has an impossible exit signal");
  return static_cast<int>(value);
}

void read_exit_signals(const ImageSet& images, const std::map<pid_t, int>& index, std::vector<TaskNode>& tasks) {
  auto reader = images.read("migrate-ext.img", magic::kMigrateExt);
  for (ext::ThreadExt e; reader && reader->next(e); e.Clear()) {
    const auto at = index.find(static_cast<pid_t>(e.tid()));
    if (at == index.end() || !e.task().has_exit_signal()) continue;
    TaskNode& task = tasks[static_cast<size_t>(at->second)];
    const int signal = checked_signal(e.task().exit_signal());
    task.exit_signal = task.zombie ? exit_signal_of_ended(signal) : signal;
  }
}

/// A session has its leader's terminal, and without a leader none. A member may have given it up (TIOCNOTTY).
void settle_terminals(std::vector<TaskNode>& tasks) {
  std::map<pid_t, int> of_session;
  std::set<int> taken;
  for (const TaskNode& t : tasks)
    // Of a running tree not all is of one moment: a terminal may seem to be that of two.
    if (t.pid == t.sid && !t.zombie && t.terminal >= 0 && taken.insert(t.terminal).second)
      of_session.emplace(t.sid, t.terminal);
  for (TaskNode& t : tasks) {
    const auto session = of_session.find(t.sid);
    const int inherited = session == of_session.end() ? -1 : session->second;
    if (t.terminal != inherited) t.terminal = -1;
    t.drop_terminal = t.terminal != inherited;
  }
}

/// Of the images: as they say of each task, else (CRIU's) those of the sessions. Only terminals that come with them.
void read_controlling_terminals(const ImageSet& images, std::vector<TaskNode>& tasks) {
  const std::vector<SessionTerminal> sessions = session_terminals(images);
  const bool told = images.has(kControllingImage);
  const std::map<pid_t, uint32_t> by_task = controlling_terminals(images);
  for (TaskNode& t : tasks) {
    const auto session =
        std::ranges::find_if(sessions, [&](const SessionTerminal& s) { return s.session == t.sid && s.session != 0; });
    if (session == sessions.end()) continue;
    const auto task = by_task.find(t.pid);
    if (!told || (task != by_task.end() && task->second == session->index))
      t.terminal = static_cast<int>(session->index);
  }
  settle_terminals(tasks);
}

/// Works out sessions from the leaves up.
class SessionPlanner {
 public:
  SessionPlanner(std::vector<TaskNode>& tasks, bool inherit_outside) : tasks_(tasks), born_(tasks.size()) {
    for (const TaskNode& t : tasks_) pids_.insert(t.pid);
    // Sessions of our own surroundings: nothing has to be done to be in them.
    const TaskNode& root = tasks_.front();
    if (inherit_outside && !pids_.contains(root.sid)) outside_ = root.sid;
    if (inherit_outside && !pids_.contains(root.pgid)) outside_group_ = root.pgid;
  }

  void run() {
    for (size_t i = tasks_.size(); i-- > 0;) plan_children(tasks_[i], i);
    plan_root();
    plan_groups();
  }

 private:
  bool outside(pid_t sid) const { return sid == 0 || (outside_ && *outside_ == sid); }

  /// Decides for each child when it is forked, and with that in which session `t` itself must be born.
  void plan_children(TaskNode& t, size_t index) {
    t.new_session = t.sid == t.pid;
    std::optional<pid_t> birth;
    if (!t.new_session) birth = t.sid;
    for (const int c : t.children) {
      TaskNode& child = tasks_[static_cast<size_t>(c)];
      const std::optional<pid_t> wanted = born_[static_cast<size_t>(c)];
      if (!wanted || *wanted == t.sid) continue;
      if (t.new_session && (!birth || *birth == *wanted) && !needs_helper(*wanted)) {
        birth = wanted;
        child.before_setsid = true;
      } else {
        use_helper(child, *wanted, t.pid);
      }
    }
    born_[index] = birth;
  }

  bool needs_helper(pid_t session) const { return !pids_.contains(session) && !outside(session); }

  void use_helper(TaskNode& child, pid_t session, pid_t parent) {
    if (!needs_helper(session)) {
      throw Refusal(task_name(child.pid) + " is in session " + std::to_string(session) +
                        ", which neither its parent nor a task that has ended can have led it into",
                    "such a tree cannot be restored yet");
    }
    const auto [it, fresh] = helper_parent_.emplace(session, parent);
    if (!fresh && it->second != parent) {
      throw Refusal(
          "the tasks of session " + std::to_string(session) + " (whose leader has ended) have several parents",
          "such a tree cannot be restored yet");
    }
    // The kernel gives a task that comes to another parent SIGCHLD (reparent_leader()).
    if (child.exit_signal != SIGCHLD && !child.zombie)
      throw Refusal(task_name(child.pid) + " has an exit signal of its own and is in session " +
                        std::to_string(session) + ", whose leader has ended",
                    "such a tree cannot be restored yet");
    child.session_helper = session;
  }

  void plan_root() {
    TaskNode& root = tasks_.front();
    const std::optional<pid_t> birth = born_.front();
    if (!birth || outside(*birth)) return;
    use_helper(root, *birth, 0);
  }

  void plan_groups() {
    std::set<pid_t> helped;
    for (TaskNode& t : tasks_) {
      if (t.pgid == t.pid) {
        t.new_group = !t.new_session;
        continue;
      }
      if (t.pgid == 0 || (outside_group_ && *outside_group_ == t.pgid)) continue;
      t.join_group = t.pgid;
      const bool led = pids_.contains(t.pgid) || helper_parent_.contains(t.pgid);
      if (!led && helped.insert(t.pgid).second) t.group_helper = t.pgid;
    }
  }

  std::vector<TaskNode>& tasks_;
  std::vector<std::optional<pid_t>> born_;  ///< session each must be born in; nullopt: any
  std::set<pid_t> pids_;
  std::map<pid_t, pid_t> helper_parent_;
  std::optional<pid_t> outside_, outside_group_;
};

}  // namespace

std::vector<TaskNode> read_tree(const ImageSet& images) {
  auto reader = images.read("pstree.img", magic::kPstree);
  if (!reader) throw Corrupt("the image folder", "pstree.img is missing");
  std::vector<TaskNode> tasks;
  std::map<pid_t, int> index;
  std::set<pid_t> ids;
  for (img::pstree_entry e; reader->next(e); e.Clear()) {
    TaskNode n = node_of(e);
    if (tasks.size() >= kMaxTasks || n.threads.size() > kMaxThreads - ids.size())
      throw Corrupt("pstree.img", "it names too many tasks or threads");
    for (const pid_t tid : n.threads)
      if (!ids.insert(tid).second) throw Corrupt("pstree.img", "id " + std::to_string(tid) + " is used twice");
    if (!tasks.empty()) {
      const auto parent = index.find(n.ppid);
      if (parent == index.end()) throw Corrupt("pstree.img", task_name(n.pid) + " comes before its parent");
      n.parent = parent->second;
      tasks[static_cast<size_t>(n.parent)].children.push_back(static_cast<int>(tasks.size()));
    }
    n.zombie = state_of(images, n.pid) == kTaskDead;
    index.emplace(n.pid, static_cast<int>(tasks.size()));
    tasks.push_back(std::move(n));
  }
  if (tasks.empty()) throw Corrupt("pstree.img", "it names no task");
  for (const TaskNode& t : tasks)
    if (t.zombie && !t.children.empty()) throw Corrupt("pstree.img", "a dead task has children");
  read_exit_signals(images, index, tasks);
  read_controlling_terminals(images, tasks);
  return tasks;
}

std::vector<TaskNode> read_tree(const TreeLayout& layout) {
  constexpr std::string_view kWhere = "the layout of the tree";
  std::vector<TaskNode> tasks;
  std::map<pid_t, int> index;
  for (const TreeLayout::Task& task : layout.tasks) {
    TaskNode n;
    const auto checked = [&](pid_t id, bool zero_ok) {
      if (id < 0 || id > kMaxPid || (id == 0 && !zero_ok)) throw Corrupt(kWhere, "a pid is out of range");
      return id;
    };
    n.pid = checked(task.pid, false);
    n.ppid = checked(task.ppid, true);
    n.pgid = checked(task.pgid, true);
    n.sid = checked(task.sid, true);
    n.threads = {n.pid};
    n.terminal = task.terminal;
    n.exit_signal = checked_signal(static_cast<uint32_t>(task.exit_signal));
    if (!tasks.empty()) {
      const auto parent = index.find(n.ppid);
      if (parent == index.end()) throw Corrupt(kWhere, task_name(n.pid) + " comes before its parent");
      n.parent = parent->second;
      tasks[static_cast<size_t>(n.parent)].children.push_back(static_cast<int>(tasks.size()));
    }
    if (!index.emplace(n.pid, static_cast<int>(tasks.size())).second)
      throw Corrupt(kWhere, task_name(n.pid) + " is there twice");
    uint64_t last = 0;
    for (const TreeLayout::Area& a : task.areas) {
      if (a.start >= a.end || a.start < last || a.end > kUserEnd || a.start % kPageSize != 0 || a.end % kPageSize != 0)
        throw Corrupt(kWhere, "an area of " + task_name(n.pid) + " is not possible");
      last = a.end;
    }
    tasks.push_back(std::move(n));
  }
  if (tasks.empty()) throw Corrupt(kWhere, "it names no task");
  settle_terminals(tasks);
  return tasks;
}

void plan_tree(std::vector<TaskNode>& tasks, bool inherit_outside) { SessionPlanner(tasks, inherit_outside).run(); }

}  // namespace migrate
