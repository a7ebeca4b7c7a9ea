// The child process of probe.ts shows the graphs of files, one after the other. llama.cpp may abort on a file that its
// architecture can't have. Then only this process is gone.
import { messageOf } from '../errors.js';
import { Model, type ModelGraph } from '../runtime/model.js';

export type ProbeReply = { graph: ModelGraph } | { error: string };

process.on('message', (file: string) => {
    graphOf(file).then(
        (graph) => reply({ graph }),
        (error: unknown) => reply({ error: messageOf(error) })
    );
});
process.on('disconnect', () => process.exit());

function reply(message: ProbeReply): void {
    process.send!(message);
}

async function graphOf(file: string): Promise<ModelGraph> {
    const model = await Model.load(file, { device: 'cpu', headerOnly: true });
    try {
        return await model.graph();
    } finally {
        model.dispose();
    }
}
