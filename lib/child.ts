import { fork, type ChildProcess } from 'node:child_process';

/**
 * Starts a script of this package in a process of its own, with which messages are exchanged: typed arrays and NaN as
 * they are.
 * @returns the process, and what tells the last line that it wrote on stderr, '' if it wrote nothing
 */
export function startChild(script: string): { child: ChildProcess; lastLine: () => string } {
    const child = fork(script, { serialization: 'advanced', stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] });
    let stderr = '';
    child.stderr!.on('data', (data: Buffer) => {
        stderr = (stderr + data.toString()).slice(-2000);
    });
    return { child, lastLine: () => stderr.trim().split('\n').at(-1)! };
}
